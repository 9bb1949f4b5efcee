"""DATA: what a user names on the command line, read into documents and turned into rows of token ids."""

from holdfast.data.documents import Documents as Documents
from holdfast.data.documents import split_off as split_off
from holdfast.data.reading import read as read
from holdfast.data.table import Columns as Columns
from holdfast.data.tokens import check_tokenizer as check_tokenizer
from holdfast.data.tokens import tokenise as tokenise

__all__ = ["Columns", "Documents", "check_tokenizer", "read", "split_off", "tokenise"]
