"""The web app of the study: pages rendered on the server, which need no JavaScript."""
