"""How many labels does pretraining save?"""
