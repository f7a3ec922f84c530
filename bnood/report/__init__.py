"""Pages and pictures of a run, a study and a lab: matplotlib figures in one self-contained HTML page."""
