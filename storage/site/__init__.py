"""The site around the queue: people, peers, nodes, notices, and the control of a running node."""
