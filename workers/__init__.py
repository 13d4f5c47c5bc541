"""Ray around the pipeline, nothing else.

cluster    connect to a Ray, decide how many lanes and what each is given
actors     what runs in Ray's processes: a lane, and the one holder of a store's folder; plain classes
metrics    what a run counts, sent to Ray
store      a store on the other side of an actor
pool       the lanes as the driver sees them: started, fed, replaced
executor   the work of a run, handed to lanes
"""
