"""What acts: networks, addresses, links, firewall and state. Nothing here knows of HTTP."""
