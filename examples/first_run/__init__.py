"""A first run with Axolotl, ms-swift or LLaMA-Factory, on a CPU; their READMEs say how."""
