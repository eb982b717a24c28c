"""What a step would take with more workers: predicted from one worker's, and checked against ranks of this host."""
