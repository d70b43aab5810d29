"""The methods, one file each; the path is the registry."""
