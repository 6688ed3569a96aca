"""What the sections have in common that name a server with OpenAI's protocol."""

from typing import Annotated

from pydantic import Field

# .../v1, without a user or a query, which can be secrets
EndpointUrl = Annotated[str, Field(pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$")]
