"""One module of views per resource."""
