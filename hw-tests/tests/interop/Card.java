import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.*;
import java.security.cert.Certificate;
import java.security.spec.*;
import java.util.*;
import javax.crypto.Cipher;
import javax.crypto.KeyAgreement;
import javax.crypto.Mac;
import javax.crypto.SecretKey;
import javax.crypto.spec.IvParameterSpec;
import javax.crypto.spec.SecretKeySpec;

/** Rules of Cryptoki by Java's SunPKCS11; called with its configuration, the PIN, a rule and what the rule takes. */
public class Card {
    static final byte[] MESSAGE = "A message for Java.".getBytes(StandardCharsets.UTF_8);
    static Provider provider;
    static KeyStore store;

    public static void main(String[] arguments) throws Exception {
        provider = Security.getProvider("SunPKCS11").configure(arguments[0]);
        Security.addProvider(provider);
        store = KeyStore.getInstance("PKCS11", provider);
        store.load(null, arguments[1].toCharArray());
        switch (arguments[2]) {
            case "list" -> list();
            case "sign" -> {
                for (String algorithm : Arrays.copyOfRange(arguments, 4, arguments.length)) sign(arguments[3], algorithm);
            }
            case "decrypt" -> decrypt(arguments[3], Path.of(arguments[4]));
            case "agree" -> agree(arguments[3], Path.of(arguments[4]));
            case "software" -> software();
            default -> throw new IllegalArgumentException(arguments[2]);
        }
    }

    static void checked(Object what) {
        System.out.println("checked: " + what);
    }

    static PrivateKey key(String alias) throws Exception {
        PrivateKey key = (PrivateKey) store.getKey(alias, null);
        if (key == null) throw new KeyStoreException(alias + " is not among " + Collections.list(store.aliases()));
        return key;
    }

    static void list() throws Exception {
        for (String alias : new TreeSet<>(Collections.list(store.aliases()))) {
            Key key = store.getKey(alias, null);
            checked(alias + " " + (key == null ? "no key" : key.getAlgorithm()) + " "
                    + store.getCertificate(alias).getPublicKey().getAlgorithm());
        }
    }

    /** A signature for OpenSSL in a file named after the algorithm, and the judgement of the card's own provider and Java's. */
    static void sign(String alias, String algorithm) throws Exception {
        Certificate certificate = store.getCertificate(alias);
        Signature signer = Signature.getInstance(algorithm, provider);
        PSSParameterSpec pss = null;
        if (algorithm.equals("RSASSA-PSS")) {
            pss = new PSSParameterSpec("SHA-256", "MGF1", MGF1ParameterSpec.SHA256, 32, 1);
            signer.setParameter(pss);
        }
        signer.initSign(key(alias));
        signer.update(MESSAGE, 0, 5);
        signer.update(MESSAGE, 5, MESSAGE.length - 5);
        byte[] signature = signer.sign();
        Files.write(Path.of("message"), MESSAGE);
        Files.write(Path.of(algorithm), signature);
        for (String by : new String[] {provider.getName(), pss == null && algorithm.contains("EC") ? "SunEC" : "SunRsaSign"}) {
            Signature judge = Signature.getInstance(algorithm, by);
            if (pss != null) judge.setParameter(pss);
            for (boolean right : new boolean[] {true, false}) {
                judge.initVerify(certificate.getPublicKey());
                judge.update(MESSAGE);
                if (!right) judge.update((byte) 0);
                if (judge.verify(signature) != right) throw new SignatureException(by + " says " + !right);
            }
        }
        checked(alias + " " + algorithm);
    }

    static void decrypt(String alias, Path ciphertext) throws Exception {
        Cipher cipher = Cipher.getInstance("RSA/ECB/PKCS1Padding", provider);
        cipher.init(Cipher.DECRYPT_MODE, key(alias));
        Files.write(Path.of("plaintext"), cipher.doFinal(Files.readAllBytes(ciphertext)));
        cipher.init(Cipher.ENCRYPT_MODE, store.getCertificate(alias).getPublicKey());
        byte[] ours = cipher.doFinal(MESSAGE);
        cipher.init(Cipher.DECRYPT_MODE, key(alias));
        if (!Arrays.equals(cipher.doFinal(ours), MESSAGE)) throw new GeneralSecurityException("another plaintext");
        cipher.init(Cipher.WRAP_MODE, store.getCertificate(alias).getPublicKey());
        byte[] wrapped = cipher.wrap(new SecretKeySpec(new byte[16], "AES"));
        cipher.init(Cipher.UNWRAP_MODE, key(alias));
        if (!cipher.unwrap(wrapped, "AES", Cipher.SECRET_KEY).getAlgorithm().equals("AES")) throw new KeyException();
        checked(alias + " decrypts and unwraps");
    }

    static void agree(String alias, Path peer) throws Exception {
        PublicKey other = KeyFactory.getInstance("EC").generatePublic(new X509EncodedKeySpec(Files.readAllBytes(peer)));
        KeyAgreement agreement = KeyAgreement.getInstance("ECDH", provider);
        agreement.init(key(alias));
        agreement.doPhase(other, true);
        Files.write(Path.of("secret"), agreement.generateSecret());
        checked(alias + " agrees");
    }

    /** What the token does without a key of the card, as Java's own providers do it. */
    static void software() throws Exception {
        for (String name : new String[] {"SHA-1", "SHA-224", "SHA-256", "SHA-384", "SHA-512"}) {
            byte[] ours = MessageDigest.getInstance(name, provider).digest(MESSAGE);
            if (!Arrays.equals(ours, MessageDigest.getInstance(name, "SUN").digest(MESSAGE))) throw new DigestException(name);
            checked(name);
        }
        SecretKey key = new SecretKeySpec(Arrays.copyOf(MESSAGE, 32), "AES");
        IvParameterSpec iv = new IvParameterSpec(new byte[16]);
        Cipher here = Cipher.getInstance("AES/CBC/PKCS5Padding", provider);
        Cipher there = Cipher.getInstance("AES/CBC/PKCS5Padding", "SunJCE");
        here.init(Cipher.ENCRYPT_MODE, key, iv);
        there.init(Cipher.DECRYPT_MODE, key, iv);
        if (!Arrays.equals(there.doFinal(here.doFinal(MESSAGE)), MESSAGE)) throw new GeneralSecurityException("AES");
        checked("AES/CBC");
        Mac mac = Mac.getInstance("HmacSHA256", provider), same = Mac.getInstance("HmacSHA256", "SunJCE");
        SecretKey secret = new SecretKeySpec(MESSAGE, "HmacSHA256");
        mac.init(secret);
        same.init(secret);
        if (!Arrays.equals(mac.doFinal(MESSAGE), same.doFinal(MESSAGE))) throw new GeneralSecurityException("HMAC");
        checked("HmacSHA256");
    }
}
