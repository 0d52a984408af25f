"""What every measurement shares: processes with limits, resumable tables, a progress bar."""
