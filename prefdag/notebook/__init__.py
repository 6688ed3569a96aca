"""DPO without the pipeline, in a notebook: losses on arrays, and training on a dataframe."""
