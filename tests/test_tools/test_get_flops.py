"""The command line of get_flops.py; its counts are in test_end_to_end.py."""

from tests.forked import forked


def test_it_takes_no_options_of_a_run():
    out = forked(
        'tools/analysis_tools/get_flops.py',
        'config.py',
        '--work-dir=w',
        '--launcher=none',
        expect=2,
    )
    assert 'unrecognized arguments: --work-dir=w --launcher=none' in out
