"""Runs over HTTP: a server with the endpoints of OpenAI, and a laboratory in the browser."""
