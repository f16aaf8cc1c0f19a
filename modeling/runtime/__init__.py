"""Files, the Hub, distributed processes and devices: what the other packages run on."""
