"""Files: configs, names, safetensors, the hub, torch."""
