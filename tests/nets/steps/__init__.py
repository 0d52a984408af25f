"""The steps a specification is made of: each prints itself, states its element-level coupling and narrows itself."""
