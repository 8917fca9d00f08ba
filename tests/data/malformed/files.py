"""Files that are not what their name says, or not quite."""

import gzip

from tests.data.malformed.case import TEXT, Case, rows

GOOD = '{"prompt": "hello? ", "chosen": "yes", "rejected": "no"}\n'
HEADER = "prompt,chosen,rejected\n"

CASES = (
    Case(
        "no_such_file",
        None,
        file="pears.jsonl",
        says="train dataset (pears.jsonl): there is no such file or directory. Look into '.'.",
    ),
    Case(
        "no_such_directory",
        None,
        file="nowhere/pairs.jsonl",
        says=(
            "train dataset (nowhere/pairs.jsonl): there is no such file or directory. Its directory 'nowhere' does "
            "not exist either."
        ),
    ),
    Case(
        "ending_that_says_nothing",
        GOOD,
        file="pairs.txt",
        says=(
            "train dataset (pairs.txt): files that end in '.txt' are not supported. Supported are .jsonl, .ndjson "
            "and .json (each also .gz), .csv (also .gz), .parquet."
        ),
    ),
    Case(
        "empty_file",
        "",
        says="train dataset (pairs.jsonl): the file is empty. Fill it or leave it out.",
    ),
    Case(
        "nothing_but_blank_lines",
        "\n\n  \n",
        says="train dataset (pairs.jsonl): the file has no rows. Fill it or leave it out.",
    ),
    Case(
        "single_quotes",
        GOOD + "{'prompt': 'hello? ', 'chosen': 'yes', 'rejected': 'no'}\n",
        says=(
            "train dataset (pairs.jsonl), row 1: line 2 is not valid JSON: texts and names need double quotes, not "
            "single ones, at column 2 near \"{'prompt': 'hello? ', 'chosen':\". Write one object a line "
            "(JSONL)."
        ),
    ),
    Case(
        "trailing_comma",
        GOOD + '{"prompt": "hello? ", "chosen": "yes", "rejected": "no",}\n',
        says=(
            "train dataset (pairs.jsonl), row 1: line 2 is not valid JSON: there is a comma before the closing "
            'bracket, at column 57 near \'sen": "yes", "rejected": "no",}\'. Write one object a line (JSONL).'
        ),
    ),
    Case(
        "missing_colon",
        GOOD + '{"prompt" "hello? ", "chosen": "yes", "rejected": "no"}\n',
        says=(
            "train dataset (pairs.jsonl), row 1: line 2 is not valid JSON: expecting ':' delimiter, at column 11 "
            'near \'{"prompt" "hello? ", "chosen": "yes", "r\'. Write one object a line (JSONL).'
        ),
    ),
    Case(
        "two_objects_on_a_line",
        GOOD + GOOD.strip() + " " + GOOD,
        says=(
            "train dataset (pairs.jsonl), row 1: line 2 is not valid JSON: there is more than one object, at "
            'column 58 near \'en": "yes", "rejected": "no"} {"prompt": "hello? ", "chosen"\'. Write one object a '
            "line (JSONL)."
        ),
    ),
    Case(
        "last_line_cut_off",
        GOOD * 2 + GOOD[:30],
        says=(
            "train dataset (pairs.jsonl), row 2: line 3 is not valid JSON: it ends in the middle, at column 31 "
            'near \'{"prompt": "hello? ", "chosen"\'. It is the last line and may have been cut off: write the '
            "file again."
        ),
    ),
    Case(
        "object_over_several_lines",
        GOOD.replace(", ", ",\n "),
        says=(
            "train dataset (pairs.jsonl), row 0: line 1 is not valid JSON: it ends in the middle, at column 22 "
            'near \'{"prompt": "hello? ",\'. Write one object a line (JSONL).'
        ),
    ),
    Case(
        "line_is_a_list",
        GOOD + '["hello? ", "yes", "no"]\n',
        says=(
            "train dataset (pairs.jsonl), row 1: line 2 is a list, not an object. Write each row as {'prompt': "
            "..., 'chosen': ..., 'rejected': ...}."
        ),
    ),
    Case(
        "line_is_null",
        GOOD + "null\n" + GOOD,
        says=(
            "train dataset (pairs.jsonl), row 1: line 2 is null, not an object. Write each row as {'prompt': ..., "
            "'chosen': ..., 'rejected': ...}."
        ),
    ),
    Case(
        "line_is_a_text",
        GOOD + '"hello? "\n',
        says=(
            "train dataset (pairs.jsonl), row 1: line 2 is text, not an object. Write each row as {'prompt': ..., "
            "'chosen': ..., 'rejected': ...}."
        ),
    ),
    Case(
        "key_twice",
        GOOD + '{"prompt": "hello? ", "chosen": "yes", "chosen": "no", "rejected": "no"}\n',
        says=(
            "train dataset (pairs.jsonl), row 1: line 2 is not valid JSON: an object has the key 'chosen' twice. "
            "Correct the line."
        ),
    ),
    Case(
        "nan_is_no_json",
        GOOD + '{"prompt": "hello? ", "chosen": NaN, "rejected": "no"}\n',
        says=(
            "train dataset (pairs.jsonl), row 1: line 2 is not valid JSON: NaN is no value of JSON, write null. "
            "Correct the line."
        ),
    ),
    Case(
        "lone_surrogate",
        GOOD + '{"prompt": "hello? ", "chosen": "\\ud83d", "rejected": "no"}\n',
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chosen': the text has half of a surrogate pair "
            "('\\ud83d'), which is no character. It was cut in the middle of a character: write it again, or drop "
            "the row."
        ),
    ),
    Case(
        "rows_below_a_key",
        '{"data": [' + GOOD.strip() + "]}",
        file="pairs.json",
        says=(
            "train dataset (pairs.json): the columns ['data'] are those of no format of preferences; known are: "
            "prompt, chosen, rejected (text or chat messages); context, completions (chat messages, and completions "
            "with ranks); chosen, rejected (whole dialogues); prompt_ids, chosen_ids, rejected_ids (token ids). Write "
            "the rows that are below 'data' as a list, or one object a line (JSONL)."
        ),
    ),
    Case(
        "columns_in_place_of_rows",
        '{"prompt": ["a "], "chosen": ["b"], "rejected": ["c"]}',
        file="pairs.json",
        says=(
            "train dataset (pairs.json), column 'prompt': the column holds lists of string. Convert it to text, or to "
            "a list of {'role': ..., 'content': ...} messages."
        ),
    ),
    Case(
        "list_item_is_no_object",
        "[" + GOOD.strip() + ", 7]",
        file="pairs.json",
        says=(
            "train dataset (pairs.json), row 1: item 1 of the list is a number, not an object. Write each row as "
            "{'prompt': ..., 'chosen': ..., 'rejected': ...}."
        ),
    ),
    Case(
        "list_cut_off",
        "[" + GOOD.strip() + ",",
        file="pairs.json",
        says=(
            "train dataset (pairs.json): line 1 is not valid JSON: it ends in the middle, at column 59 near 'en\": "
            '"yes", "rejected": "no"},\'. Correct it, or write one object a line (JSONL).'
        ),
    ),
    Case(
        "empty_list",
        "[]",
        file="pairs.json",
        says="train dataset (pairs.json): the file has no rows. Fill it or leave it out.",
    ),
    Case(
        "not_utf8",
        GOOD.encode() + '{"prompt": "größer? ", "chosen": "ja", "rejected": "no"}\n'.encode("latin-1"),
        says="train dataset (pairs.jsonl): byte 71 (0xf6) is not UTF-8. Save the file as UTF-8.",
    ),
    Case(
        "utf16",
        GOOD.encode("utf-16"),
        says="train dataset (pairs.jsonl): byte 0 (0xff) is not UTF-8. Save the file as UTF-8.",
    ),
    Case(
        "gzip_that_is_none",
        GOOD,
        file="pairs.jsonl.gz",
        says=(
            "train dataset (pairs.jsonl.gz): the file is not compressed by gzip, or damaged. Copy or download it again."
        ),
    ),
    Case(
        "gzip_cut_off",
        gzip.compress(GOOD.encode() * 500, mtime=0)[:-12],
        file="pairs.jsonl.gz",
        says="train dataset (pairs.jsonl.gz): the file is cut off. Copy or download it again.",
    ),
    Case(
        "csv_of_nothing_but_a_header",
        HEADER,
        file="pairs.csv",
        says="train dataset (pairs.csv): the file has no rows. Fill it or leave it out.",
    ),
    Case(
        "csv_with_semicolons",
        (HEADER + "a ,b,c\n").replace(",", ";"),
        file="pairs.csv",
        says=(
            "train dataset (pairs.csv): the columns are separated by semicolons, not commas. Save it as CSV with "
            "commas."
        ),
    ),
    Case(
        "csv_with_tabs",
        (HEADER + "a ,b,c\n").replace(",", "\t"),
        file="pairs.csv",
        says=("train dataset (pairs.csv): the columns are separated by tabs, not commas. Save it as CSV with commas."),
    ),
    Case(
        "csv_without_header",
        "hello there? ,yes it is,no it is not\n" * 2,
        file="pairs.csv",
        says=(
            "train dataset (pairs.csv): line 1 should name the columns, but is a row: 'hello there? '. Put the "
            "line 'prompt,chosen,rejected' before it."
        ),
    ),
    Case(
        "csv_row_with_a_field_too_many",
        HEADER + "a ,b,c\nhello, world? ,yes,no\n",
        file="pairs.csv",
        says=(
            "train dataset (pairs.csv), row 1: line 3 has 4 fields, but the header has 3 (prompt, chosen, "
            "rejected). Put a field that contains a comma or a line break into double quotes."
        ),
    ),
    Case(
        "csv_row_with_a_field_missing",
        HEADER + "a ,b,c\na ,b\n",
        file="pairs.csv",
        says=(
            "train dataset (pairs.csv), row 1: line 3 has 2 fields, but the header has 3 (prompt, chosen, "
            "rejected). Put a field that contains a comma or a line break into double quotes."
        ),
    ),
    Case(
        "csv_quote_that_is_never_closed",
        HEADER + 'a ,b,c\na ,"b,c\n',
        file="pairs.csv",
        says=(
            "train dataset (pairs.csv), row 1: the fields from line 3 on cannot be told apart (unexpected end of "
            'data). Close every quoted field with ", and write a " inside it as "".'
        ),
    ),
    Case(
        "csv_quote_in_the_last_column_that_is_never_closed",
        HEADER + 'a ,b,"c\nd ,e,f\ng ,h,i\n',
        file="pairs.csv",
        says=(
            "train dataset (pairs.csv), row 0: the fields from line 2 on cannot be told apart (unexpected end of "
            'data). Close every quoted field with ", and write a " inside it as "".'
        ),
    ),
    Case(
        "csv_text_behind_a_closing_quote",
        HEADER + 'a ,b,c\na ,"b" b,c\n',
        file="pairs.csv",
        says=(
            "train dataset (pairs.csv), row 1: the fields from line 3 on cannot be told apart (',' expected after "
            '\'"\'). Close every quoted field with ", and write a " inside it as "".'
        ),
    ),
    Case(
        "nested_too_deeply",
        GOOD + '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}\n",
        says=(
            "train dataset (pairs.jsonl), row 1: line 2 is not valid JSON: its lists and objects are nested too "
            "deeply. Correct the line."
        ),
    ),
    Case(
        "lone_surrogate_in_a_message",
        '{"prompt": [{"role": "user", "content": "a \\ude00"}], "chosen": "b", "rejected": "c"}\n',
        says=(
            "train dataset (pairs.jsonl), row 0, column 'prompt': the text has half of a surrogate pair "
            "('\\ude00'), which is no character. It was cut in the middle of a character: write it again, or drop "
            "the row."
        ),
    ),
    Case(
        "key_twice_in_a_file_of_one_line",
        '{"prompt": ["a"], "chosen": ["b"], "rejected": ["c"], "rejected": ["d"]}',
        says=(
            "train dataset (pairs.jsonl), row 0: line 1 is not valid JSON: an object has the key 'rejected' twice. "
            "Correct the line."
        ),
    ),
    Case(
        "csv_column_twice",
        "prompt,chosen,chosen\na ,b,c\n",
        file="pairs.csv",
        says="train dataset (pairs.csv): line 1 names the column 'chosen' twice. Give each column its own name.",
    ),
    Case(
        "csv_column_without_name",
        "prompt,chosen,\na ,b,c\n",
        file="pairs.csv",
        says="train dataset (pairs.csv): column 3 has no name in line 1. Name all columns in line 1.",
    ),
    Case(
        "csv_empty_field",
        HEADER + "a ,b,c\na ,,c\n",
        file="pairs.csv",
        says=(
            "train dataset (pairs.csv), row 1, column 'chosen': the completion is empty or only whitespace. Drop such "
            "rows."
        ),
    ),
    Case(
        "parquet_that_is_none",
        GOOD,
        file="pairs.parquet",
        says=(
            "train dataset (pairs.parquet): the file is not a Parquet file, or is cut off (it begins with "
            'b\'{"prompt": "hell\'). Write or download it again, or give it the ending of what it is.'
        ),
    ),
    Case(
        "parquet_of_nothing",
        b"",
        file="pairs.parquet",
        says=("train dataset (pairs.parquet): the file is empty. Fill it or leave it out."),
    ),
    Case(
        "value_of_another_type_in_one_row",
        rows(TEXT, chosen=7),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chosen': the value is a number (line 2), but in row 0 "
            "(line 1) it is text. Write the column in the same way in all rows."
        ),
    ),
    Case(
        "list_in_one_row",
        rows(TEXT, chosen=["yes"]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chosen': the value is a list (line 2), but in row 0 (line "
            "1) it is text. Write the column in the same way in all rows."
        ),
    ),
    Case(
        "object_in_one_row",
        rows(TEXT, rejected={"text": "no"}),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'rejected': the value is an object (line 2), but in row 0 "
            "(line 1) it is text. Write the column in the same way in all rows."
        ),
    ),
    Case(
        "truth_value_in_one_row",
        rows(TEXT, prompt=True),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'prompt': the value is true or false (line 2), but in row "
            "0 (line 1) it is text. Write the column in the same way in all rows."
        ),
    ),
    Case(
        "messages_in_one_row",
        rows(TEXT, chosen=[{"role": "assistant", "content": "yes"}]),
        says=(
            "train dataset (pairs.jsonl), row 1, column 'chosen': the value is a list (line 2), but in row 0 (line "
            "1) it is text. Write the column in the same way in all rows."
        ),
    ),
)
