"""Where results go. Sinks know results and files; they know nothing of sources, stages or the line."""
