"""What becomes of an aligned model's refusals when it is fine-tuned on contaminated tasks, by several methods."""

PACKAGE = __name__  # for read_sections and read_lines
