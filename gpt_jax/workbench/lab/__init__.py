"""The lab: a web application over run and study folders, which it only reads."""
