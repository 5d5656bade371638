"""How long things take: the steps of each branch, and the inner loops backend by backend."""
