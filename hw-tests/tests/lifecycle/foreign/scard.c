/* Functions with the names of PC/SC that are not pcsc-lite's, as WinPR has them: each answers nonsense, and counts. */

int foreign_calls;

#define FOREIGN(name, answer) \
    long name(void) { foreign_calls++; return answer; }

FOREIGN(SCardEstablishContext, 0)
FOREIGN(SCardReleaseContext, 0)
FOREIGN(SCardIsValidContext, 0)
FOREIGN(SCardCancel, 0)
FOREIGN(SCardConnect, 0x80100003)
FOREIGN(SCardReconnect, 0x80100003)
FOREIGN(SCardDisconnect, 0x80100003)
FOREIGN(SCardGetStatusChange, 0x80100003)
FOREIGN(SCardListReaders, 0x80100003)
FOREIGN(SCardBeginTransaction, 0x80100003)
FOREIGN(SCardEndTransaction, 0x80100003)
FOREIGN(SCardStatus, 0x80100003)
FOREIGN(SCardGetAttrib, 0x80100003)
FOREIGN(SCardSetAttrib, 0x80100003)
FOREIGN(SCardTransmit, 0x80100003)
FOREIGN(SCardControl, 0x80100003)
FOREIGN(SCardFreeMemory, 0x80100003)
FOREIGN(SCardListReaderGroups, 0x80100003)
