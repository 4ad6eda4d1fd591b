"""Rules of Cryptoki by PyKCS11, judged by the openssl command.

Called with the module, the PIN and the name of a rule; prints one line for each thing that was checked.
"""

import subprocess
import sys
from pathlib import Path

import PyKCS11
from PyKCS11 import *

MODULE, PIN, RULE = sys.argv[1:]
MESSAGE = b"A message for PyKCS11."
HASHES = {
    "sha1": (CKM_SHA_1, CKG_MGF1_SHA1, CKM_SHA1_RSA_PKCS, CKM_SHA1_RSA_PKCS_PSS, CKM_ECDSA_SHA1),
    "sha224": (CKM_SHA224, CKG_MGF1_SHA224, CKM_SHA224_RSA_PKCS, CKM_SHA224_RSA_PKCS_PSS, 0x1043),
    "sha256": (CKM_SHA256, CKG_MGF1_SHA256, CKM_SHA256_RSA_PKCS, CKM_SHA256_RSA_PKCS_PSS, 0x1044),
    "sha384": (CKM_SHA384, CKG_MGF1_SHA384, CKM_SHA384_RSA_PKCS, CKM_SHA384_RSA_PKCS_PSS, 0x1045),
    "sha512": (CKM_SHA512, CKG_MGF1_SHA512, CKM_SHA512_RSA_PKCS, CKM_SHA512_RSA_PKCS_PSS, 0x1046),
}
CURVES = {"06082a8648ce3d030107": "P-256", "06052b81040022": "P-384", "06052b81040023": "P-521"}
EC_PUBLIC_KEY = bytes.fromhex("06072a8648ce3d0201")


def checked(*what):
    print("checked:", *what, flush=True)


def file(name, content):
    path = Path(name)
    path.write_bytes(bytes(content))
    return str(path)


def openssl(*arguments, ok=True):
    done = subprocess.run(["openssl", *arguments], capture_output=True)
    assert (done.returncode == 0) == ok, (arguments, done)
    return done.stdout


def refused(code, call, *arguments):
    """That `call` fails with this very code."""
    try:
        answer = call(*arguments)
    except PyKCS11Error as error:
        assert error.value == code, (CKR[error.value], "instead of", CKR[code])
    else:
        raise AssertionError(("not refused", call, answer))


def tlv(tag, value):
    size = [len(value)] if len(value) < 128 else [0x81, len(value)]
    if len(value) > 255:
        size = [0x82, len(value) >> 8, len(value) & 255]
    return bytes([tag, *size]) + value


def integer(value):
    return tlv(2, (b"\0" if value[0] & 0x80 else b"") + value)


class Card:
    """The only token, and a session with it."""

    def __init__(self, login=True):
        self.library = PyKCS11Lib()
        self.library.load(MODULE)
        [self.slot] = self.library.getSlotList(tokenPresent=True)
        self.session = self.library.openSession(self.slot, CKF_SERIAL_SESSION | CKF_RW_SESSION)
        if login:
            self.session.login(PIN)

    def objects(self, cls):
        return self.session.findObjects([(CKA_CLASS, cls)])

    def get(self, thing, *attributes):
        values = self.session.getAttributeValue(thing, attributes)
        values = [bytes(v) if isinstance(v, (tuple, ckbytelist)) else v for v in values]
        return values if len(values) > 1 else values[0]

    def pairs(self, usage):
        """Private keys with this usage, and their public keys."""
        for private in self.session.findObjects([(CKA_CLASS, CKO_PRIVATE_KEY), (usage, True)]):
            wanted = [(CKA_CLASS, CKO_PUBLIC_KEY), (CKA_ID, self.get(private, CKA_ID))]
            [public] = self.session.findObjects(wanted)
            yield private, public

    def allowed(self, key):
        packed = bytes(self.session.getAttributeValue(key, [CKA_ALLOWED_MECHANISMS], True)[0])
        return {int.from_bytes(packed[n:n + 8], "little") for n in range(0, len(packed), 8)}

    def curve(self, key):
        return CURVES.get(self.get(key, CKA_EC_PARAMS).hex())

    def pem(self, public):
        """A file with the public key for OpenSSL, made of its attributes."""
        if self.get(public, CKA_KEY_TYPE) == CKK_RSA:
            modulus, exponent = self.get(public, CKA_MODULUS, CKA_PUBLIC_EXPONENT)
            key = tlv(0x30, integer(modulus) + integer(exponent))
            algorithm = bytes.fromhex("06092a864886f70d0101010500")
        else:
            algorithm, point = self.get(public, CKA_EC_PARAMS, CKA_EC_POINT)
            key = point[3 if point[1] == 0x81 else 2:]
            if self.get(public, CKA_KEY_TYPE) == CKK_EC:
                algorithm = EC_PUBLIC_KEY + algorithm
        spki = tlv(0x30, tlv(0x30, algorithm) + tlv(3, b"\0" + key))
        assert bytes(self.get(public, 0x129)) == spki, "CKA_PUBLIC_KEY_INFO"
        openssl("pkey", "-pubin", "-inform", "DER", "-in", file("key.der", spki), "-out", "key.pem")
        return "key.pem"

    def sign(self, key, data, mechanism):
        """As Session.sign does, with the login for each use where the key wants one."""
        library, session, out = self.library.lib, self.session.session, ckbytelist()
        assert library.C_SignInit(session, mechanism.to_native(), key) == CKR_OK
        if self.get(key, CKA_ALWAYS_AUTHENTICATE):
            self.session.login(PIN, CKU_CONTEXT_SPECIFIC)
        for _ in ("its length", "itself"):
            rv = library.C_Sign(session, ckbytelist(data), out)
            assert rv == CKR_OK, CKR[rv]
        return bytes(out)


def judged(card, public, mechanism, data, signature, *command):
    """Accepted by OpenSSL, and by the module; refused by both once a bit is another."""
    bad = bytearray(signature)
    bad[len(bad) // 2] ^= 4
    native = card.get(public, CKA_KEY_TYPE) == CKK_EC
    for value, ok in ((signature, True), (bytes(bad), False)):
        assert card.session.verify(public, data, value, mechanism) == ok
        half = len(value) // 2
        number = lambda part: integer(part.lstrip(b"\0") or b"\0")
        der = tlv(0x30, number(value[:half]) + number(value[half:])) if native else value
        where = file("signature", der)
        openssl(*[where if word == "SIGNATURE" else word for word in command], ok=ok)
    if not native:
        refused(CKR_SIGNATURE_LEN_RANGE, card.session.verify, public, data, signature[:-1], mechanism)


def dgst(card, public, name, *more):
    message = file("message", MESSAGE)
    return ("dgst", f"-{name}", *more, "-verify", card.pem(public), "-signature", "SIGNATURE", message)


def signatures():
    card = Card()
    for private, public in card.pairs(CKA_SIGN):
        label, kind = card.get(private, CKA_LABEL, CKA_KEY_TYPE)
        allowed = card.allowed(private)
        for name, (digest, mask, pkcs, pss, ecdsa) in HASHES.items():
            hashed = bytes(card.session.digest(MESSAGE, Mechanism(digest)))
            salt = len(hashed)
            options = ("-sigopt", "rsa_padding_mode:pss", "-sigopt", f"rsa_pss_saltlen:{salt}")
            uses = []
            if kind == CKK_RSA:
                uses.append((Mechanism(pkcs), pkcs, MESSAGE, ()))
                uses.append((RSA_PSS_Mechanism(pss, digest, mask, salt), pss, MESSAGE, options))
                whole = RSA_PSS_Mechanism(CKM_RSA_PKCS_PSS, digest, mask, salt)
                uses.append((whole, CKM_RSA_PKCS_PSS, hashed, options))
            elif kind == CKK_EC:
                uses.append((Mechanism(ecdsa), ecdsa, MESSAGE, ()))
                uses.append((Mechanism(CKM_ECDSA), CKM_ECDSA, hashed, ()))
            for mechanism, number, data, more in uses:
                if number in allowed:
                    signature = card.sign(private, data, mechanism)
                    judged(card, public, mechanism, data, signature, *dgst(card, public, name, *more))
                    checked(label, CKM.get(number, hex(number)), name)
        if kind == 0x40:
            mechanism = Mechanism(0x1057)
            signature = card.sign(private, MESSAGE, mechanism)
            command = ("pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", card.pem(public), "-sigfile")
            command = (*command, "SIGNATURE", "-in", file("message", MESSAGE))
            judged(card, public, mechanism, MESSAGE, signature, *command)
            checked(label, "CKM_EDDSA")


def ciphers():
    card = Card()
    for private, public in card.pairs(CKA_DECRYPT):
        label = card.get(private, CKA_LABEL)
        if card.get(private, CKA_ALWAYS_AUTHENTICATE):
            continue
        paddings = [("pkcs1", Mechanism(CKM_RSA_PKCS), ())]
        for name, (digest, mask, *_) in HASHES.items():
            for text in (b"", b"a label"):
                options = ("-pkeyopt", f"rsa_oaep_md:{name}", "-pkeyopt", f"rsa_mgf1_md:{name}")
                options += ("-pkeyopt", f"rsa_oaep_label:{text.hex()}") if text else ()
                mechanism = RSAOAEPMechanism(digest, mask, list(text) or None)
                if CKM_RSA_PKCS_OAEP in card.allowed(private):
                    paddings.append(("oaep", mechanism, options))
        for mode, mechanism, options in paddings:
            options = ("-pkeyopt", f"rsa_padding_mode:{mode}", *options)
            encrypt = ("pkeyutl", "-encrypt", "-pubin", "-inkey", card.pem(public), *options)
            ciphertext = openssl(*encrypt, "-in", file("message", MESSAGE))
            assert bytes(card.session.decrypt(private, ciphertext, mechanism)) == MESSAGE
            ours = bytes(card.session.encrypt(public, MESSAGE, mechanism))
            assert ours != ciphertext and len(ours) == len(ciphertext)
            assert bytes(card.session.decrypt(private, ours, mechanism)) == MESSAGE
            refused(CKR_ENCRYPTED_DATA_LEN_RANGE, card.session.decrypt, private, ours[:-1], mechanism)
            checked(label, mode, *options[3::2])


SECRET = [(CKA_CLASS, CKO_SECRET_KEY), (CKA_KEY_TYPE, CKK_GENERIC_SECRET), (CKA_TOKEN, False),
          (CKA_SENSITIVE, False), (CKA_EXTRACTABLE, True)]


def derivations():
    card = Card()
    for private, public in card.pairs(CKA_DERIVE):
        label, curve = card.get(private, CKA_LABEL), card.curve(public)
        what = ("EC", "-pkeyopt", f"ec_paramgen_curve:{curve}") if curve else ("X25519",)
        openssl("genpkey", "-algorithm", *what, "-out", "peer.pem")
        spki = openssl("pkey", "-in", "peer.pem", "-pubout", "-outform", "DER")
        size = 32 if not curve else 1 + 2 * ((int(curve[2:]) + 7) // 8)
        point = spki[-size:]
        derive = ("pkeyutl", "-derive", "-inkey", "peer.pem", "-peerkey", card.pem(public))
        shared = openssl(*derive)
        mechanism = ECDH1_DERIVE_Mechanism(point)
        secret = card.session.deriveKey(private, SECRET, mechanism)
        assert card.get(secret, CKA_VALUE, CKA_VALUE_LEN) == [shared, len(shared)]
        checked(label, "whole")
        short = card.session.deriveKey(private, [*SECRET, (CKA_VALUE_LEN, 16)], mechanism)
        assert card.get(short, CKA_VALUE)[0] in (shared[0], shared[-16])
        assert len(card.get(short, CKA_VALUE)) == 16
        info = ECDH1_DERIVE_Mechanism(point, 6, b"shared info")
        hashed = card.session.deriveKey(private, SECRET + [(CKA_VALUE_LEN, 32)], info)
        file("kdf", shared + b"\0\0\0\1" + b"shared info")
        assert card.get(hashed, CKA_VALUE) == openssl("dgst", "-sha256", "-binary", "kdf")
        checked(label, "CKD_SHA256_KDF")
        card.session.destroyObject(secret)
        refused(CKR_OBJECT_HANDLE_INVALID, card.get, secret, CKA_VALUE)
        hidden = [pair for pair in SECRET if pair[0] not in (CKA_SENSITIVE, CKA_EXTRACTABLE)]
        hidden += [(CKA_SENSITIVE, True), (CKA_EXTRACTABLE, False)]
        hidden = card.session.deriveKey(private, hidden, mechanism)
        # PyKCS11 gives None where the module says that a value is not for reading.
        assert card.session.getAttributeValue(hidden, [CKA_VALUE]) == [None]
        checked(label, "a sensitive value stays inside")
        bad = point[:-1] + bytes([point[-1] ^ 1])
        if curve:
            try:
                card.session.deriveKey(private, SECRET, ECDH1_DERIVE_Mechanism(bad))
                raise AssertionError("a point beside the curve")
            except PyKCS11Error as error:
                assert error.value in (CKR_MECHANISM_PARAM_INVALID, CKR_PUBLIC_KEY_INVALID), error
            checked(label, "a point beside the curve is refused")


CKR_PUBLIC_KEY_INVALID = 0x1B9


def wrapping():
    """AES keys travel by RSA; what they encrypt, OpenSSL decrypts."""
    card = Card()
    template = [(CKA_CLASS, CKO_SECRET_KEY), (CKA_KEY_TYPE, CKK_AES), (CKA_TOKEN, False),
                (CKA_ENCRYPT, True), (CKA_DECRYPT, True)]
    value, iv = bytes(range(32)), bytes(range(100, 116))
    for private, public in card.pairs(CKA_UNWRAP):
        if card.get(private, CKA_ALWAYS_AUTHENTICATE):
            continue
        key = file("aes", value)
        encrypt = ("pkeyutl", "-encrypt", "-pubin", "-inkey", card.pem(public), "-in", key)
        secret = card.session.unwrapKey(private, openssl(*encrypt), template)
        mechanism = Mechanism(CKM_AES_CBC_PAD, iv)
        sealed = bytes(card.session.encrypt(secret, MESSAGE, mechanism))
        aes = ("enc", "-aes-256-cbc", "-K", value.hex(), "-iv", iv.hex(), "-in", file("sealed", sealed))
        assert openssl(*aes, "-d") == MESSAGE
        assert bytes(card.session.decrypt(secret, sealed, mechanism)) == MESSAGE
        checked(card.get(private, CKA_LABEL), "CKM_AES_CBC_PAD")


def digests():
    card = Card(login=False)
    for name, (digest, *_) in HASHES.items():
        for size in (0, 3, 100_000):
            data = bytes(n & 255 for n in range(size))
            expected = openssl("dgst", f"-{name}", "-binary", file("data", data))
            # PyKCS11 itself refuses to digest nothing in one call.
            assert not data or bytes(card.session.digest(data, Mechanism(digest))) == expected
            parts = card.session.digestSession(Mechanism(digest))
            for n in range(0, size, 7_001):
                parts.update(data[n:n + 7_001])
            assert bytes(parts.final()) == expected
        checked(name)


def attributes():
    """Each attribute of each object can be asked for; a certificate's are those OpenSSL reads."""
    card = Card()
    for thing in card.session.findObjects():
        values = thing.to_dict()
        assert values["CKA_TOKEN"] and "CKA_LABEL" in values, values
        if values["CKA_CLASS"] == "CKO_CERTIFICATE":
            text = file("certificate", bytes(values["CKA_VALUE"]))
            openssl("x509", "-inform", "DER", "-in", text, "-noout")
            info = openssl("x509", "-inform", "DER", "-in", text, "-noout", "-pubkey")
            wanted = [(CKA_CLASS, CKO_PUBLIC_KEY), (CKA_ID, bytes(values["CKA_ID"]))]
            [public] = card.session.findObjects(wanted)
            assert Path(card.pem(public)).read_bytes() == info
        if values["CKA_CLASS"] == "CKO_PRIVATE_KEY":
            for secret in ("CKA_PRIVATE_EXPONENT", "CKA_PRIME_1", "CKA_VALUE"):
                assert not values.get(secret), secret
        checked(values["CKA_CLASS"], values["CKA_LABEL"])


def sessions():
    card = Card(login=False)
    info = card.library.getTokenInfo(card.slot)
    assert info.flags & CKF_LOGIN_REQUIRED, info.flags2text()
    assert card.session.getSessionInfo().state == CKS_RW_PUBLIC_SESSION
    private = lambda: len(card.session.findObjects([(CKA_CLASS, CKO_PRIVATE_KEY), (CKA_PRIVATE, True)]))
    assert private() == 0
    reader = card.library.openSession(card.slot)
    assert reader.getSessionInfo().state == CKS_RO_PUBLIC_SESSION
    card.session.login(PIN)
    refused(CKR_USER_ALREADY_LOGGED_IN, reader.login, PIN)
    assert reader.getSessionInfo().state == CKS_RO_USER_FUNCTIONS and private() > 0
    checked("a login is of all sessions")
    [key, *_] = card.session.findObjects([(CKA_CLASS, CKO_PRIVATE_KEY), (CKA_PRIVATE, True)])
    card.session.logout()
    assert private() == 0
    refused(CKR_USER_NOT_LOGGED_IN, card.session.logout)
    refused(CKR_OBJECT_HANDLE_INVALID, card.session.getAttributeValue, key, [CKA_LABEL])
    checked("handles of private objects end with the login")
    reader.closeSession()
    refused(CKR_SESSION_HANDLE_INVALID, reader.getSessionInfo)
    card.library.closeAllSessions(card.slot)
    refused(CKR_SESSION_HANDLE_INVALID, card.session.getSessionInfo)
    checked("closed sessions are gone")
    refused(CKR_NO_EVENT, lambda: card.library.waitForSlotEvent(CKF_DONT_BLOCK) or no_event())
    checked("nothing happens in the slot")
    refused(CKR_SLOT_ID_INVALID, card.library.getTokenInfo, 4711)
    checked("an unknown slot")


def no_event():
    raise PyKCS11Error(CKR_NO_EVENT)


def session_objects():
    card = Card()
    label = "an object of the session"
    data = [(CKA_CLASS, CKO_DATA), (CKA_TOKEN, False), (CKA_PRIVATE, False), (CKA_LABEL, label),
            (CKA_VALUE, b"content")]
    thing = card.session.createObject(data)
    assert card.get(thing, CKA_LABEL, CKA_VALUE) == [label, b"content"]
    assert [card.get(found, CKA_VALUE) for found in card.session.findObjects([(CKA_LABEL, label)])] == [b"content"]
    card.session.setAttributeValue(thing, [(CKA_LABEL, "renamed")])
    assert card.session.findObjects([(CKA_LABEL, label)]) == []
    card.session.destroyObject(thing)
    assert card.session.findObjects([(CKA_LABEL, "renamed")]) == []
    checked("a data object comes, changes and goes")
    secret = [(CKA_CLASS, CKO_SECRET_KEY), (CKA_KEY_TYPE, CKK_GENERIC_SECRET), (CKA_TOKEN, False),
              (CKA_SIGN, True), (CKA_VERIFY, True), (CKA_VALUE, b"k" * 32)]
    key, mechanism = card.session.createObject(secret), Mechanism(CKM_SHA256_HMAC)
    mac = bytes(card.session.sign(key, MESSAGE, mechanism))
    hmac = ("dgst", "-sha256", "-mac", "hmac", "-macopt", "key:" + "k" * 32, "-binary")
    assert mac == openssl(*hmac, file("message", MESSAGE))
    assert card.session.verify(key, MESSAGE, mac, mechanism)
    checked("CKM_SHA256_HMAC")
    first, second = (bytes(card.session.generateRandom(64)) for _ in range(2))
    assert len(first) == len(second) == 64 and first != second
    checked("random numbers")


globals()[RULE]()
