"""A user study of compression methods: participants, time sheets, questionnaires, bundles to hand in, analysis.

It has a command line (`cli`) and a web app (`web`). All data is in one database (`database`), all sentences that
participants read are in `texts.yaml`, in English and Chinese. Runs stay in MLflow: `participant_runs` reads them, and
`observer` tags them with the stage of the study.
"""
