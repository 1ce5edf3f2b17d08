"""The study: people, their time, questionnaires, hand-in, analysis; on the command line and in a browser.

What it keeps lies in one database (`store`), and every word a person reads in `texts.yaml`. Runs stay in MLflow:
`runs` reads them there, and `observer` is what a run says of the study.
"""
