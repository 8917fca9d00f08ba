"""Files that are not what their name says, or not quite."""

import gzip

from tests.data.malformed.case import TEXT, Case, rows

GOOD = '{"prompt": "hello? ", "chosen": "yes", "rejected": "no"}\n'
HEADER = "prompt,chosen,rejected\n"

CASES = (
    Case("no_such_file", None, file="pears.jsonl"),
    Case("no_such_directory", None, file="nowhere/pairs.jsonl"),
    Case("ending_that_says_nothing", GOOD, file="pairs.txt"),
    Case("empty_file", ""),
    Case("nothing_but_blank_lines", "\n\n  \n"),
    Case("single_quotes", GOOD + "{'prompt': 'hello? ', 'chosen': 'yes', 'rejected': 'no'}\n"),
    Case("trailing_comma", GOOD + '{"prompt": "hello? ", "chosen": "yes", "rejected": "no",}\n'),
    Case("missing_colon", GOOD + '{"prompt" "hello? ", "chosen": "yes", "rejected": "no"}\n'),
    Case("two_objects_on_a_line", GOOD + GOOD.strip() + " " + GOOD),
    Case("last_line_cut_off", GOOD * 2 + GOOD[:30]),
    Case("object_over_several_lines", GOOD.replace(", ", ",\n ")),
    Case("line_is_a_list", GOOD + '["hello? ", "yes", "no"]\n'),
    Case("line_is_null", GOOD + "null\n" + GOOD),
    Case("line_is_a_text", GOOD + '"hello? "\n'),
    Case("key_twice", GOOD + '{"prompt": "hello? ", "chosen": "yes", "chosen": "no", "rejected": "no"}\n'),
    Case("nan_is_no_json", GOOD + '{"prompt": "hello? ", "chosen": NaN, "rejected": "no"}\n'),
    Case("lone_surrogate", GOOD + '{"prompt": "hello? ", "chosen": "\\ud83d", "rejected": "no"}\n'),
    Case("rows_below_a_key", '{"data": [' + GOOD.strip() + "]}", file="pairs.json"),
    Case("columns_in_place_of_rows", '{"prompt": ["a "], "chosen": ["b"], "rejected": ["c"]}', file="pairs.json"),
    Case("list_item_is_no_object", "[" + GOOD.strip() + ", 7]", file="pairs.json"),
    Case("list_cut_off", "[" + GOOD.strip() + ",", file="pairs.json"),
    Case("empty_list", "[]", file="pairs.json"),
    Case("not_utf8", GOOD.encode() + '{"prompt": "größer? ", "chosen": "ja", "rejected": "no"}\n'.encode("latin-1")),
    Case("utf16", GOOD.encode("utf-16")),
    Case("gzip_that_is_none", GOOD, file="pairs.jsonl.gz"),
    Case("gzip_cut_off", gzip.compress(GOOD.encode() * 500, mtime=0)[:-12], file="pairs.jsonl.gz"),
    Case("csv_of_nothing_but_a_header", HEADER, file="pairs.csv"),
    Case("csv_with_semicolons", (HEADER + "a ,b,c\n").replace(",", ";"), file="pairs.csv"),
    Case("csv_with_tabs", (HEADER + "a ,b,c\n").replace(",", "\t"), file="pairs.csv"),
    Case("csv_without_header", "hello there? ,yes it is,no it is not\n" * 2, file="pairs.csv"),
    Case("csv_row_with_a_field_too_many", HEADER + "a ,b,c\nhello, world? ,yes,no\n", file="pairs.csv"),
    Case("csv_row_with_a_field_missing", HEADER + "a ,b,c\na ,b\n", file="pairs.csv"),
    Case("csv_quote_that_is_never_closed", HEADER + 'a ,b,c\na ,"b,c\n', file="pairs.csv"),
    Case("csv_column_twice", "prompt,chosen,chosen\na ,b,c\n", file="pairs.csv"),
    Case("csv_column_without_name", "prompt,chosen,\na ,b,c\n", file="pairs.csv"),
    Case("csv_empty_field", HEADER + "a ,b,c\na ,,c\n", file="pairs.csv"),
    Case("parquet_that_is_none", GOOD, file="pairs.parquet"),
    Case("parquet_of_nothing", b"", file="pairs.parquet"),
    Case("value_of_another_type_in_one_row", rows(TEXT, chosen=7)),
    Case("list_in_one_row", rows(TEXT, chosen=["yes"])),
    Case("object_in_one_row", rows(TEXT, rejected={"text": "no"})),
    Case("truth_value_in_one_row", rows(TEXT, prompt=True)),
    Case("messages_in_one_row", rows(TEXT, chosen=[{"role": "assistant", "content": "yes"}])),
)
