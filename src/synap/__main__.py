"""`python -m synap` is the command line `synap`."""

from synap.cli import main

if __name__ == "__main__":
    main()
