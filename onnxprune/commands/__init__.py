"""Commands of the command line that have options of their own."""
