"""One command a question; results as JSON with hardware, versions, commit, date and command."""
