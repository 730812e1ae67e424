"""How one operation is computed on each platform; one dispatch that every model goes through."""
