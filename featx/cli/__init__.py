"""The ``featx`` command: parse, call one function of the API, print."""
