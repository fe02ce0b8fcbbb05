"""The report: records to one offline HTML page, charts and CSV tables. See ``report.page``."""
