"""Upgrades: another encoder for a collection that stays searchable, and the way back.

vectors     what a stored chunk becomes in another version: embedded anew, or mapped by a bridge
difference  how two versions differ, by their documents' heads
limits      so many tokens, within these hours of the day
mirror      brings one version in step with another (reading, writing)
versions    which version serves, which is being built, which is kept
candidate   the version that is being built, and how it is to be filled
reindex     fills it
promotion   lets it serve, and the way back
listing     what versions there are
gate        whether readers may be moved: completeness, questions and what both answer (asking), judged tasks,
            each a check that passes, holds or fails (decision); verdict and report
drift       how stored vectors of two versions, or of two times, differ (sampling, drifting)
"""
