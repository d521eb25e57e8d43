"""Will it fit, and how fast can it be: compile for absent hardware and read the program."""
