"""The study in a browser: pages made on the server, which work without JavaScript, by keyboard and on a phone."""
