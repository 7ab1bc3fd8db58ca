"""Ask a running server: files and series in, the server's own JSON answers out."""

from medad_serve.client.client import Answer, Client, Source
from medad_serve.client.retries import Retries
from medad_serve.client.tokens import URL, find_key_file

__all__ = ["URL", "Answer", "Client", "Retries", "Source", "find_key_file"]
