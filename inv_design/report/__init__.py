"""The report: plain records of a campaign in, one self-contained HTML page out."""
