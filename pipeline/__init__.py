"""pipeline: from a job's specification to committed rows, on Ray or in one process."""
