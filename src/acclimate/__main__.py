"""``python -m acclimate`` is ``acclimate``."""

from .cli import program

if __name__ == "__main__":
    program()
