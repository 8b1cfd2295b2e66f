"""What can be chosen: strategies, the rules that make them feasible, and how a search walks among them."""
