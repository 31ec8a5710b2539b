"""`python -m pact_swift` prints the file that `--external_plugins` takes."""

from pathlib import Path

if __name__ == "__main__":
    # In a folder of its own: ms-swift puts the file's folder first on the module search path.
    print(Path(__file__).parent / "external" / "pact.py")
