"""The commands that both packages share, one module each: they parse, call the library and print."""
