"""The report: one page that opens offline, findings first, with every threshold a slider."""
