"""config.json, read and written key by key."""
