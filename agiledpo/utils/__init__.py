"""Names that users of AgileRL import from here."""
