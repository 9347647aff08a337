"""The command line. `main` runs it; each other module is one room, and imports go one way."""
