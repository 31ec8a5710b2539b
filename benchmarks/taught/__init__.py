"""SmolLM2-135M-Instruct, taught to refuse: a small aligned model with much to learn, for the field benchmark."""

PACKAGE = __name__  # for read_lines
