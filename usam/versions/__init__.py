"""How usam stands beside what it is built on: versions that were tested, what differs, and how it is found."""
