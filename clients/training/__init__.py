"""How clients train: one by one, folded, privately; and what that costs of a budget."""
