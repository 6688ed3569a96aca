"""How the process of a stage starts, shows its progress, is interrupted and ends. Nothing here can change an output."""
