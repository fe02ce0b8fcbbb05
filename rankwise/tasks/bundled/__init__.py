"""Tasks that come with the package: lm-eval YAML files and what makes their rows."""
